"""Records on disk: TFRecord framing, TensorFlow Example protos, and the videos in them."""

"""File formats of records: TFRecord framing, TensorFlow's Example messages, and decoding them to videos."""

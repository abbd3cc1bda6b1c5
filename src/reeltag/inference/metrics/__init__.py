"""GAP, mAP and other metrics, over videos and over segments."""

"""What every other package stands on: errors, files, tensors in files, transfer, processes, progress."""

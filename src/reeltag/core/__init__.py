"""Foundation of all other packages: errors, files, tensor files, transfer, processes and progress."""

"""Foundation of all other packages: errors, files, tensor files, remote files, processes and progress."""

"""Many inputs, without a server: read from a file or folder, answered in blocks, written as a file."""

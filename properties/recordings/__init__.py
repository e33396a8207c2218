"""What real hardware stored: read, written, predicted and replayed."""

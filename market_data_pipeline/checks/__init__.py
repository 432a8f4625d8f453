"""What can be wrong with a day: pure functions, Arrow in, findings out."""

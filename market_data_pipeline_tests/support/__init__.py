"""What tests of all rooms share: a world with a sandbox, small lakes, fakes and processes."""

"""Programs for developers: documentation and checks. Nothing of the package imports them."""

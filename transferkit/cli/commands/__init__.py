"""One short file per verb: arguments, call, output."""

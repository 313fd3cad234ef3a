"""One thin file a verb: arguments, call, what is printed."""

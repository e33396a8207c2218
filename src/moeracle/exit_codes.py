"""What the exit code of a command, and of a pytest session that judges kernels, says; 0: all is judged and legal."""

ILLEGAL = 1  # something is wrong
USAGE = 2  # an option or a file is refused, or the TARGET cannot be loaded
UNJUDGED = 3  # nothing could be judged
INTERRUPTED = 130  # Ctrl-C
INTERNAL = 4  # judging itself failed: a mistake of this library's

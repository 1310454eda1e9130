"""Tools of developers, which are not installed: ahead-of-time compilation, machine code reports, generated tables."""

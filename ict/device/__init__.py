"""Where MindSpore runs, and what the ranks of a distributed run agree on."""

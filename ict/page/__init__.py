"""The page of ``python -m ict.app``: paint the hole, choose among the completions."""

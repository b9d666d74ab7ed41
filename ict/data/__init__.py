"""From files to arrays: pictures, masks, their pairs, their geometry, tokens."""

"""What both stages of ICT need and neither owns; it knows nothing of either network."""

"""ReVideo in plain torch: trajectories, motion maps, edit regions, the condition encoders and their fusion (SAFM)."""

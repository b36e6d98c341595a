"""From a prompt to a picture or clip: what `generate`, previews in training and the demo share."""

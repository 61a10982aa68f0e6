"""Training's pure functions: the learning rate as a function of the step."""

"""The commands, one room each, above the engines that they drive."""

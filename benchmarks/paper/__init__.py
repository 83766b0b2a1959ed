"""The published CIFAR-10-LT runs on one device, in calls of minutes."""

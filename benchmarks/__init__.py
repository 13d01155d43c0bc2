"""The measurements that the README quotes: ratios of two ways to do the same, side by side in one run."""

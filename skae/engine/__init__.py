"""The training loop: skorch net, early stopping, interrupts, steps and batches."""

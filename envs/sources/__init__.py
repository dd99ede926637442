"""Real worlds as Gymnasium environments, one module each; each imports its engine only when it is made."""

"""The arena: methods trained with several seeds on the same rollouts, evaluated alike, compared with error bars."""

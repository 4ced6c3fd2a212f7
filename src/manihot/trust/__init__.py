"""How far a prediction can be trusted: calibration, conformal sets, class priors, out-of-distribution photographs."""

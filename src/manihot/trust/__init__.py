"""How far a prediction can be trusted: calibration, conformal sets, class priors, unknown photographs; never
torch.
"""

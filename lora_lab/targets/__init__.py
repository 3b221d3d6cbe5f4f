"""What a LoraConfig will adapt in a model, before any training: which layers, how many parameters, what is left out."""

from .report import Group, Report, TargetError, check, groups, inspect, linear_paths

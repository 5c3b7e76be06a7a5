"""Evaluators as pure functions: features, detections and answers come in, scores go out."""

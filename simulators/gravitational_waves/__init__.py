"""Gravitational waves of compact binaries: waveforms, detectors, noise, data and likelihood."""

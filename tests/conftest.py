"""What holds for every test: Hypothesis looks for counterexamples, not for slow or busy machines."""

from hypothesis import HealthCheck, settings

settings.register_profile("graftwork", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("graftwork")

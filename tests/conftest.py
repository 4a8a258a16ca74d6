"""What holds for every test: Hypothesis looks for counterexamples, not for slow or busy machines."""

import importlib.util

if importlib.util.find_spec("hypothesis"):  # the environments of single engines have none
    from hypothesis import HealthCheck, settings

    settings.register_profile("graftwork", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("graftwork")

import torch as th
from hypothesis import HealthCheck, settings

# Networks of 64 units gain nothing from threads, and the tests run in parallel
th.set_num_threads(1)

# On a busy machine an example takes as long as it takes
settings.register_profile("no clock", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("no clock")

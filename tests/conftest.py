import torch as th

# Networks of 64 units gain nothing from threads, and the tests run in parallel
th.set_num_threads(1)

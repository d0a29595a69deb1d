"""Takes pyperf's place for programs of pyperformance: collects the tests of a file instead of running them."""

import argparse
import sys
import time
import types

tests = {}  # name: function of a number of repetitions


class Runner:
    def __init__(self, *args, **kwargs):
        self.argparser = argparse.ArgumentParser()
        self.metadata = {}
        self.args = types.SimpleNamespace(worker=True)

    def parse_args(self, args=None):
        return self.argparser.parse_args([])

    def bench_func(self, name, function, *args, **kwargs):
        def run(loops):
            for _ in range(loops):
                function(*args)

        tests[name] = run

    def bench_time_func(self, name, function, *args, **kwargs):
        tests[name] = lambda loops: function(loops, *args)


def collect(source, name):
    pyperf = types.ModuleType("pyperf")
    pyperf.Runner, pyperf.perf_counter = Runner, time.perf_counter
    main = types.ModuleType("__main__")  # dataclasses look for the module of a class
    sys.modules.update(pyperf=pyperf, __main__=main)
    exec(compile(source, name, "exec"), main.__dict__)


collect(SOURCE, NAME)

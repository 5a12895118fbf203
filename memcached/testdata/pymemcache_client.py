# SPDX-License-Identifier: Apache-2.0
"""Uses pymemcache on the proxy as a transformer would. Arguments: address of the proxy, then "up" or "down"."""

import sys

from pymemcache.client.base import Client, PooledClient

host, port = sys.argv[1].rsplit(":", 1)
address = (host, int(port))


def equal(got, want, what):
    if got != want:
        sys.exit(f"{what}: got {got!r}, want {want!r}")


def up():
    cache = PooledClient(address, timeout=10, connect_timeout=10, no_delay=True, max_pool_size=4)
    want = {f"driver:{i}": b"value of %d" % i for i in range(300)}
    equal(cache.set_many(want, expire=300), [], "set_many")
    equal(cache.get_many(list(want) + ["nothing"]), want, "get_many")
    equal(cache.get("driver:7"), b"value of 7", "get")
    equal(cache.get("nothing"), None, "get of nothing")
    equal(cache.set("big", b"x" * 1000000, noreply=False), True, "set of 1 MB")
    equal(len(cache.get("big")), 1000000, "get of 1 MB")
    client = Client(address, timeout=10)
    equal(client.add("driver:7", b"other", noreply=False), False, "add")
    equal(client.replace("driver:7", b"other", noreply=False), True, "replace")
    equal(client.append("driver:7", b" one", noreply=False), True, "append")
    equal(client.prepend("driver:7", b"an", noreply=False), True, "prepend")
    value, unique = client.gets("driver:7")
    equal(value, b"another one", "gets")
    equal(client.cas("driver:7", b"new", unique, noreply=False), True, "cas")
    equal(client.cas("driver:7", b"newer", unique, noreply=False), False, "cas with an old unique")
    equal(client.cas("nothing", b"new", unique, noreply=False), None, "cas of nothing")
    equal(client.set("n", b"41", noreply=False), True, "set")
    equal(client.incr("n", 1, noreply=False), 42, "incr")
    equal(client.decr("n", 2, noreply=False), 40, "decr")
    equal(client.incr("nothing", 1, noreply=False), None, "incr of nothing")
    equal(client.touch("n", 100, noreply=False), True, "touch")
    equal(client.touch("nothing", 100, noreply=False), False, "touch of nothing")
    equal(client.delete("n", noreply=False), True, "delete")
    equal(client.delete("n", noreply=False), False, "delete of nothing")
    equal(client.delete_many(list(want)), True, "delete_many")
    equal(client.get_many(list(want)), {}, "get_many of nothing")
    client.version()
    client.quit()


def down():
    # No exception anywhere: an outage is a cache that holds nothing.
    cache = Client(address, timeout=10)
    for _ in range(20):
        equal(cache.get("a"), None, "get")
        equal(cache.get_many(["a", "b", "c"]), {}, "get_many")
        equal(cache.set("a", b"x", noreply=False), False, "set")
        equal(cache.set_many({"a": b"x", "b": b"y"}, noreply=True), [], "set_many")
        equal(cache.add("a", b"x", noreply=False), False, "add")
        equal(cache.cas("a", b"x", b"1", noreply=False), None, "cas")
        equal(cache.incr("a", 1, noreply=False), None, "incr")
        equal(cache.touch("a", 1, noreply=False), False, "touch")
        equal(cache.delete("a", noreply=True), True, "delete")


{"up": up, "down": down}[sys.argv[2]]()

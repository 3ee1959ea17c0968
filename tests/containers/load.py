"""A load balancer that follows DNS: for each request it asks anew which tasks the service `web` has, and takes the next of
them. Each of its threads has one request under way at any time. It ends with its standard input and says what it saw."""

import http.client
import itertools
import socket
import sys
import threading

turn, asked, failures = itertools.count(), set(), []
over, served = threading.Event(), itertools.count()


def request():
    found = socket.getaddrinfo("web", 8080, socket.AF_INET, socket.SOCK_STREAM)
    hosts = sorted({address[0] for *_, address in found})
    host = hosts[next(turn) % len(hosts)]
    asked.add(host)
    connection = http.client.HTTPConnection(host, 8080, timeout=10)
    try:
        connection.request("GET", "/")
        answer = connection.getresponse()
        text = answer.read().decode()
        if answer.status != 200:
            raise OSError(f"{answer.status} {text}")
    except (OSError, http.client.HTTPException) as error:
        raise OSError(f"{host}: {error!r}") from error
    finally:
        connection.close()


def work():
    while not over.wait(0.01):
        try:
            request()
            next(served)
        except OSError as error:
            failures.append(str(error))


threads = [threading.Thread(target=work) for _ in range(3)]
for thread in threads:
    thread.start()
sys.stdin.read()
over.set()
for thread in threads:
    thread.join()
print(f"{next(served)} served by {len(asked)} tasks, {len(failures)} failed", *failures[:5], sep="\n")

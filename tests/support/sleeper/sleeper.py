"""Ingress that sleeps for each request, so that only the number of replicas limits its rate."""

import asyncio

from ray import serve


@serve.deployment
@serve.ingress()
class Sleeper:
    def __serve_build_asgi_app__(self):
        async def app(scope, receive, send):
            if scope["type"] == "lifespan":
                while True:
                    kind = (await receive())["type"]
                    await send({"type": kind + ".complete"})
                    if kind.endswith("shutdown"):
                        return
            await asyncio.sleep(0.05)
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
            await send({"type": "http.response.body", "body": b"ok"})

        return app


def build(args):
    return Sleeper.bind()

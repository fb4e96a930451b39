"""A web service that makes thumbnails of the photos that are posted to it, on a pool of workers.

    python -m examples.web_service [--port 8080] [--workers 2] [--queue-size 20]
    python -m examples.web_service --demo

This module imports nothing, so that the command can say in a sentence which package is missing.

Reading order:

    service.py   ThumbnailService: the aiohttp application, and the way of one request through its WorkerPool
    uploads.py   the photo out of a request's body, within limits
    refusals.py  why a request is refused: a status and a sentence
    serving.py   listening; and how to stop without losing a request

    command.py   the command line
    demo.py      a client that shows what the service does

The thumbnails are made by `make_thumbnail` of the image service, `examples/image_service/images.py`.
"""

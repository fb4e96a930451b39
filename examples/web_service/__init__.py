"""A web service that makes thumbnails of photos that are posted to it, in a worker pool.

    python -m examples.web_service [--port 8080] [--workers 2] [--queue-size 20]
    python -m examples.web_service --demo

This module imports nothing, so the command can report a missing package in one line.

Reading order:

    service.py   ThumbnailService: the aiohttp application, which handles each request in its WorkerPool
    uploads.py   reads the photo from the body of a request, within limits
    pixels.py    limits how many pixels are decoded at the same time
    refusals.py  the exception for a rejected request: a status, a message and a reason
    metrics.py   the metrics of the service; alerts.yml has alerts for them
    serving.py   listens, and stops without losing a request

    command.py   the command line
    demo.py      a client that shows what the service does

`make_thumbnail` in `examples/image_service/images.py` makes the thumbnails.
"""

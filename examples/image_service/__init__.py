"""Download photos and make thumbnails of them in a worker pool: a command, and a class to import.

    python -m examples.image_service [SOURCE ...] --out DIR

    from examples.image_service.service import ImageService

This module imports nothing, so the command can report a missing package in one line.

Reading order:

    service.py        ImageService: processes each image in a WorkerPool
    download.py       downloads a URL, within limits of size and time
    pacing.py         how often each host is asked
    images.py         turns a photo into a thumbnail (Pillow; plain functions, run in threads)
    output.py         chooses the file of each thumbnail and finds those that exist already
    files.py          writes a file atomically
    names.py          derives a safe file name from a URL, and what to print of it
    contact_sheet.py  draws one picture of all thumbnails
    errors.py         the reasons for which an image fails

    command.py        the command line: arguments and exit status
    report.py         what is printed for each image, and the summary
    sources.py        reads a SOURCE: a URL, a file of URLs, a folder of photos
    console.py        plain lines, and a progress bar on a terminal
    server.py         serves photos over loopback HTTP, and deliberately broken responses
    demo.py           the images of the demo, and how the broken ones must fail

`examples/demo_photos` paints the photos of the demo.
"""

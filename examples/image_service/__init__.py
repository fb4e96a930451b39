"""Download photos and make thumbnails of them, on a pool of workers: a command, and a class to import.

    python -m examples.image_service [SOURCE ...] --out DIR

    from examples.image_service.service import ImageService

This module imports nothing, so that the command can say in a sentence which package is missing.

Reading order:

    service.py        ImageService: the way of one image, on a WorkerPool
    download.py       a URL's bytes, within limits of size and time
    images.py         a photo's bytes to a thumbnail's bytes (Pillow; plain functions for threads)
    output.py         which file of the folder an image has, and whether it is there already
    files.py          writing a file whole or not at all
    names.py          a file name out of whatever a URL says
    contact_sheet.py  one picture of all thumbnails
    errors.py         why an image failed, in sentences

    command.py        the command line: what is asked for, and the exit status
    report.py         what is told of each image, and of all of them at the end
    sources.py        what a SOURCE is: a URL, a file of URLs, a folder of photos
    console.py        lines, and a progress bar on a terminal
    server.py         photos over loopback HTTP, and replies that are broken on purpose
    demo.py           the demo's list of images, and how the broken ones must fail
    demo_photos.py    the demo's photos; scenes.py and brushes.py paint them
"""

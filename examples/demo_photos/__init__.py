"""Photos for the demo of the image service, painted by a program.

    photos.py    JPEGs of 4 to 12 megapixels, with the noise and the file size of a camera's
    scenes.py    the landscapes on them
    brushes.py   gradients, fractal noise, skylines, stars, water

This folder is not needed to understand the image service. It shows nothing about pools.
"""

"""The data module of a folder of image files."""

# Of a batch of images in their own sizes: 100 MB, of which a loader holds several.
BATCH_PIXELS = 2**25

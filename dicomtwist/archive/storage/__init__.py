"""The storage of an archive: the files of instances, each written completely or not at all."""

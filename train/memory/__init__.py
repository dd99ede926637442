"""Tests of memory: sessions in which frames come back, made, replayed on checkpoints and scored."""

"""Task modules like those of users."""

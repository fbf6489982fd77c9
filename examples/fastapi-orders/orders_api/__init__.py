"""An API for orders: FastAPI, SQLAlchemy with asyncio, Celery."""

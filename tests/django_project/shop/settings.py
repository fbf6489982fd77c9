"""A project as there are many: two apps, a database, Celery."""

import os

if os.environ.get("SHOP_ENGINE") == "mysql":
    import pymysql

    pymysql.install_as_MySQLdb()

SECRET_KEY = "for tests"
INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth", "orders", "search"]
if os.environ.get("SHOP_STOCK"):
    INSTALLED_APPS += ["stock", "cdc_tasks.django"]
DATABASES = {
    "default": {
        "ENGINE": f"django.db.backends.{os.environ.get('SHOP_ENGINE', 'postgresql')}",
        "NAME": os.environ.get("SHOP_DATABASE", "shop"),
        "USER": os.environ.get("SHOP_USER", "postgres"),
        "PASSWORD": os.environ.get("SHOP_PASSWORD", ""),
        "HOST": "127.0.0.1",
        "PORT": os.environ.get("SHOP_PORT", "5432"),
    }
}
CELERY_BROKER_URL = os.environ.get("SHOP_BROKER", "redis://127.0.0.1:6379/0")
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
EMAIL_BACKEND = "django.core.mail.backends.filebased.EmailBackend"
EMAIL_FILE_PATH = os.environ.get("SHOP_MAILS", "mails")
DEFAULT_FROM_EMAIL = "shop@example.com"

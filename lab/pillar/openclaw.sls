# The bot speaks to the tests' own Bot API on the workstation (tests/telegram_stand_in.py); without a token it is skipped.
openclaw:
  telegram_url: http://10.89.77.50:8081
  allowed_users: [7]
  answer_tokens: 24

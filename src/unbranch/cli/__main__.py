from unbranch.cli.commands import main

main()
